"""Default texts for comparing models: old and new prose of 1 to 90 words in several languages."""

from collections.abc import Sequence

TEXTS = [
    "Call me Ishmael.",
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness.",
    "Happy families are all alike; every unhappy family is unhappy in its own way.",
    "Beware the Jabberwock, my son! The jaws that bite, the claws that catch!",
    "Reader, I married him.",
    "I have called this principle, by which each slight variation, if useful, is preserved, by the term of "
    "Natural Selection.",
    "The wind was against them now, and the boat made no headway; but nobody on board had the heart to say so.",
    "No.",
    "“What is the use of a book,” thought Alice, “without pictures or conversations?”",
    "Four score and seven years ago our fathers brought forth on this continent, a new nation, conceived in "
    "Liberty, and dedicated to the proposition that all men are created equal. Now we are engaged in a great "
    "civil war, testing whether that nation, or any nation so conceived and so dedicated, can long endure. We are "
    "met on a great battle-field of that war. We have come to dedicate a portion of that field, as a final "
    "resting place for those who here gave their lives that that nation might live. It is altogether fitting and "
    "proper that we should do this.",
    "To Sherlock Holmes she is always THE woman. I have seldom heard him mention her under any other name.",
    "En un lugar de la Mancha, de cuyo nombre no quiero acordarme, no ha mucho tiempo que vivía un hidalgo.",
    "Habe nun, ach! Philosophie, Juristerei und Medizin, und leider auch Theologie durchaus studiert.",
    "A dull, overlong and joyless affair: two hours, 3 plots, 0 jokes.",
    "The price rose from $1,299.00 to $1,349.50 (+3.9%) on 14 March 2019; see section 4.2.",
    "Whenever I find myself growing grim about the mouth; whenever it is a damp, drizzly November in my soul; "
    "whenever I find myself involuntarily pausing before coffin warehouses, and bringing up the rear of every "
    "funeral I meet; and especially whenever my hypos get such an upper hand of me, that it requires a strong "
    "moral principle to prevent me from deliberately stepping into the street, and methodically knocking people's "
    "hats off - then, I account it high time to get to sea as soon as I can.",
    "A warm and funny story that earns every one of its tears.",
    "吾輩は猫である。名前はまだ無い。",
    "Мой дядя самых честных правил, когда не в шутку занемог.",
    "I do not know what I may appear to the world, but to myself I seem to have been only like a boy playing on "
    "the sea-shore.",
    "e4 e5 Nf3 Nc6 Bb5 a6",
    "There is a tide in the affairs of men, which, taken at the flood, leads on to fortune; omitted, all the "
    "voyage of their life is bound in shallows and in miseries.",
    "Yes, it works 😀 and I would buy it again!!!",
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want "
    "of a wife. However little known the feelings or views of such a man may be on his first entering a "
    "neighbourhood, this truth is so well fixed in the minds of the surrounding families, that he is considered "
    "the rightful property of some one or other of their daughters.",
]

QUESTIONS = [
    "Who is speaking?",
    "What is this about?",
    "When and where does it happen?",
]


def with_questions(texts: Sequence[str | tuple[str, str]]) -> list[str | tuple[str, str]]:
    """Puts a question before each text that is not a pair, for models that read pairs."""
    return [
        (QUESTIONS[number % len(QUESTIONS)], text) if isinstance(text, str) else text
        for number, text in enumerate(texts)
    ]
