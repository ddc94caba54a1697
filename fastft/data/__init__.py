"""Data: files to samples, samples to batches. See `load_corpus`."""

from fastft.data.collate import collate
from fastft.data.corpus import load_corpus
from fastft.data.order import batches
from fastft.data.sample import Corpus, Example, Sample, Stats

__all__ = ["Corpus", "Example", "Sample", "Stats", "batches", "collate", "load_corpus"]
