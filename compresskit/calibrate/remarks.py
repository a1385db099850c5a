"""Words of remarks: short texts of function words, such as people answer each other with."""

from __future__ import annotations

SPEAKERS = ("I", "you", "we", "they", "he", "she", "somebody", "nobody", "everyone", "one of us", "my friend")

DEEDS = (
    ("want", "wanted"), ("need", "needed"), ("know", "knew"), ("see", "saw"), ("take", "took"), ("find", "found"),
    ("make", "made"), ("like", "liked"), ("say", "said"), ("have", "had"), ("do", "did"), ("get", "got"),
    ("keep", "kept"), ("mean", "meant"), ("try", "tried"), ("lose", "lost"), ("think of", "thought of"),
)  # fmt: skip
"""Plain and past form."""

THINGS = (
    "it", "this", "that", "them", "some", "nothing", "something", "all of it", "the other one", "the same thing",
    "more than that", "a little", "both", "too much", "one", "what was left", "none of these",
)  # fmt: skip

TAILS = (
    "",
    "",
    "",
    "again",
    "now",
    "then",
    "here",
    "too",
    "before",
    "at all",
    "so far",
    "for me",
    "with them",
    "first",
)

ASKING = (
    "why did", "when did", "where did", "how could", "why would", "can", "should", "did", "will", "how often do",
    "what if", "where can", "how will", "who says",
)  # fmt: skip

POINTING = ("it", "this", "that", "here", "what we have", "the first", "mine", "yours", "all of this", "the rest")

JUDGING = (
    "is", "was", "is not", "was never", "will be", "could be", "seems", "has been", "may be", "is hardly", "is still",
)  # fmt: skip

QUALITIES = (
    "", "good", "bad", "odd", "new", "old", "fine", "wrong", "true", "hard", "small", "better", "enough", "a good",
    "a bad", "a big", "the only", "the best", "the wrong", "another", "such a", "an easy", "my",
)  # fmt: skip

KINDS = ("", "", "one", "thing", "way", "day", "part", "place", "answer", "mistake", "question", "time", "news")
