"""Relation extraction from sentences, with or without bags: readers, encoding, and scores."""

from __future__ import annotations

from compresskit.tasks.relation_extraction.encoding import (
    Encoded,
    Vocabulary,
    add_markers,
    collate_relations,
    encode_instances,
    mark,
    relation_numbers,
    word_vectors,
)
from compresskit.tasks.relation_extraction.evaluation import Ranking, evaluate, fit_temperature, rank
from compresskit.tasks.relation_extraction.instances import Instance, instance
from compresskit.tasks.relation_extraction.readers import FORMATS, read_instances, read_relations, split_file

__all__ = [
    "FORMATS",
    "Encoded",
    "Instance",
    "Ranking",
    "Vocabulary",
    "add_markers",
    "collate_relations",
    "encode_instances",
    "evaluate",
    "fit_temperature",
    "instance",
    "mark",
    "rank",
    "read_instances",
    "read_relations",
    "relation_numbers",
    "split_file",
    "word_vectors",
]
