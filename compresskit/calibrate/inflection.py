"""How the words of the lexicon change: verbs that aren't regular, and plurals."""

from __future__ import annotations

from compresskit.calibrate.lexicon import phrases

FORMS: dict[str, tuple[str, str]] = {
    verb: (past, done)
    for verb, past, done in (
        entry.split()
        for entry in phrases("""
        run ran run, sit sat sat, stand stood stood, sleep slept slept, ride rode ridden, drive
        drove driven, read read read, hold held held, throw threw thrown, cut cut cut, swim swam
        swum, sing sang sung, shoot shot shot, drink drank drunk, eat ate eaten, fight fought
        fought, lie lay lain, put put put, take took taken, fall fell fallen, draw drew drawn, write
        wrote written, spread spread spread, buy bought bought, go went gone, leave left left, find
        found found, lose lost lost, sell sold sold, break broke broken, forget forgot forgotten,
        meet met met, teach taught taught, pay paid paid, get got got, lend lent lent, catch caught
        caught, send sent sent, win won won, feed fed fed, quit quit quit, say said said, tell told
        told
    """)
    )
}
MANY = dict(
    entry.split(" > ")
    for entry in phrases("""
        man > men, woman > women, child > children, person > people, gentleman > gentlemen,
        fisherman > fishermen, sheep > sheep, fish > fish, shrimp > shrimp, deer > deer, wolf > wolves,
        bread > slices of bread, cheese > pieces of cheese, pasta > plates of pasta, garlic > cloves of garlic,
        ice cream > scoops of ice cream, bowl of cereal > bowls of cereal
    """)
)
