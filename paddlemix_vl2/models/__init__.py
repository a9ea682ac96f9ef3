"""The model: single-device mathematics, no process groups.

One letter legend for the shapes in this folder:

=====  ==================================================================
B      sequences in the batch
T      query positions of this call
S      key positions: the whole sequence so far
H      hidden size of the language model
N      attention heads
D      dimension of one head (Dn without rotation, Dr rotated, Dv of the values)
R      rank of the latent keys and values (kv_lora_rank)
E      routed experts
K      experts chosen per token (num_experts_per_tok)
M      tokens in a flat list (B * T)
V      vocabulary
I      views (image tiles) that the vision encoder sees
P      patches of one tile
W      width of the vision encoder
=====  ==================================================================

Attention tensors are laid out [B, T, N, D], as in Paddle's own attention functions; caches of multi-head
attention are [B, N, S, D], so that a decode step reads them in order.
"""

from paddlemix_vl2.process_tuning import tune_process

tune_process()
