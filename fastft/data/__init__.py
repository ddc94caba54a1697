"""Data: files to samples, samples to batches. See `load_corpus`."""

from fastft.data.batch import Batch, Target
from fastft.data.corpus import load_corpus
from fastft.data.draws import Draw
from fastft.data.masking import Mask
from fastft.data.objectives import OBJECTIVES, Objective, make_objective
from fastft.data.order import batches
from fastft.data.sample import Corpus, Example, Sample, Samples, Stats

__all__ = [
    "OBJECTIVES", "Batch", "Corpus", "Draw", "Example", "Mask", "Objective", "Sample", "Samples", "Stats", "Target",
    "batches", "load_corpus", "make_objective",
]  # fmt: skip
