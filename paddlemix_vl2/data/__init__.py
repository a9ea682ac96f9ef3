"""From data files to batches for training.

records      the position of each record in a user's file, and the error of one that cannot be used
formats      one record of a file -> a conversation or a text, checked
sources      a described source -> ``source[i]``
mixture      sample index -> which sample of which source
preparation  record -> sample for the model, no longer than allowed
packing      samples -> rows -> one padded batch of numpy arrays
tile_balance which rank computes which rows, so that all have about as many tiles
workers      the processes that read pictures and tokenise
loader       all of it behind ``BatchLoader``
fingerprint  what a checkpoint keeps of its data

Nothing here computes with Paddle: batches are numpy arrays.
"""

from paddlemix_vl2.data.fingerprint import check_fingerprint, data_fingerprint
from paddlemix_vl2.data.loader import BatchLoader, BatchMeta
from paddlemix_vl2.data.mixture import Mixture
from paddlemix_vl2.data.packing import collate, pack_next_fit
from paddlemix_vl2.data.preparation import prepare
from paddlemix_vl2.data.records import BrokenSample, Overlong, Record
from paddlemix_vl2.data.sources import SourceSpec, open_source

__all__ = [
    "BatchLoader",
    "BatchMeta",
    "BrokenSample",
    "Mixture",
    "Overlong",
    "Record",
    "SourceSpec",
    "check_fingerprint",
    "collate",
    "data_fingerprint",
    "open_source",
    "pack_next_fit",
    "prepare",
]
