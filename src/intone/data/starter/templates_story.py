"""How people ask about a story they have just told.

A name never opens the whole text, so that a tokenizer sees it behind a space everywhere.
"""

from intone.data.starter.item import numbered

OPENINGS = (
    "One day ",
    "This morning ",
    "Yesterday ",
    "In the morning ",
    "First ",
    "After lunch, ",
    "Today ",
    "At noon ",
)

FRAMES = (
    "{story} {question}",
    "{story} {question}",
    "{story} {question}",
    "Here is a story. {story} {question}",
    "Read this story. {story} {question}",
    "Listen. {story} {question}",
    "{story} Question: {question}",
    "{story} Now tell me: {question}",
)

STORY = numbered(
    {
        "where person": """
Where is {p}?
Where is {p} now?
In which place is {p}?
Where can I find {p}?
Which place is {p} in?
Where did {p} end up?
Tell me where {p} is.
Where is {p} at the end?
Do you know where {p} is?
""",
        "where thing": """
Where is the {t}?
Where is the {t} now?
In which place is the {t}?
Where can I find the {t}?
Which place is the {t} in?
Where did the {t} end up?
Tell me where the {t} is.
Where is the {t} at the end?
Do you know where the {t} is?
""",
        "who has": """
Who has the {t}?
Who has the {t} now?
Who holds the {t}?
Which person has the {t}?
Who is holding the {t}?
Who has got the {t} now?
Tell me who has the {t}.
Who has the {t} at the end?
""",
        "who took": """
Who took the {t}?
Who was it who took the {t}?
Which person took the {t}?
Who was it that took the {t}?
Tell me who took the {t}.
By whom was the {t} taken?
Can you say who took the {t}?
""",
        "what took": """
What did {p} take?
What thing did {p} take?
Which thing did {p} take?
What was it that {p} took?
Tell me what {p} took.
What thing was taken by {p}?
What was taken by {p}?
""",
        "whom gave": """
To whom did {p} give the {t}?
Who did {p} give the {t} to?
Who got the {t} from {p}?
Which person got the {t} from {p}?
Tell me who got the {t} from {p}.
To which person did {p} give the {t}?
Who was given the {t} by {p}?
""",
        "what gave": """
What did {p} give to {q}?
What did {q} get from {p}?
Which thing did {p} give to {q}?
What was it that {p} gave to {q}?
Tell me what {p} gave to {q}.
Which thing did {q} get from {p}?
What thing did {p} give to {q}?
""",
        "feels": """
How does {p} feel?
How did {p} feel?
What does {p} feel?
How is {p} feeling?
Tell me how {p} feels.
How did {p} seem to feel?
How was {p} feeling?
""",
        "who is in": """
Who is in the {place}?
Who is in the {place} now?
Which person is in the {place}?
Who can be found in the {place}?
Tell me who is in the {place}.
Who ended up in the {place}?
Who is in the {place} at the end?
""",
    }
)
