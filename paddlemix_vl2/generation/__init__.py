"""From a model and a batch to the answer, as ids and as text.

decoding   the loop: one token per step for every row, stop tokens
sampling   logits -> the next token
streaming  tokens -> text while it is generated
batched    many conversations -> answers, in batches of similar length

The loop needs two methods of a model only; nothing here imports ``models``.
"""
