"""How people ask about weekdays, months and dates."""

from intone.data.starter.item import numbered

DATES = numbered(
    {
        "weekday after": """
Which day is {n} days after {start}?
What day is {n} days after {start}?
If today is {start}, what day is it in {n} days?
Today is {start}. Which day is it in {n} days?
What day comes {n} days after {start}?
It is {start}. What day will it be in {n} days?
What weekday is {n} days from {start}?
Start at {start} and go {n} days on. Which day is it?
Count {n} days on from {start}.
""",
        "weekday before": """
Which day is {n} days before {start}?
What day is {n} days before {start}?
If today is {start}, what day was it {n} days ago?
Today is {start}. Which day was it {n} days ago?
What day comes {n} days before {start}?
It is {start}. What day was it {n} days ago?
What weekday was {n} days before {start}?
Start at {start} and go {n} days back. Which day is it?
Count {n} days back from {start}.
""",
        "weekday after one": """
Which day is 1 day after {start}?
What day is 1 day after {start}?
If today is {start}, what day is it in 1 day?
Today is {start}. Which day is it in 1 day?
""",
        "weekday before one": """
Which day is 1 day before {start}?
What day is 1 day before {start}?
If today is {start}, what day was it 1 day ago?
Today is {start}. Which day was it 1 day ago?
""",
        "date after": """
What date is {n} days after {start}?
Which date is {n} days after {start}?
If today is {start}, what date is it in {n} days?
Today is {start}. What is the date in {n} days?
It is {start}. What will the date be in {n} days?
What date comes {n} days after {start}?
Start at {start} and go {n} days on. What date is it?
Count {n} days on from {start}.
""",
        "date before": """
What date is {n} days before {start}?
Which date is {n} days before {start}?
If today is {start}, what date was it {n} days ago?
Today is {start}. What was the date {n} days ago?
It is {start}. What was the date {n} days ago?
What date comes {n} days before {start}?
Start at {start} and go {n} days back. What date is it?
Count {n} days back from {start}.
""",
        "date after one": """
What date is 1 day after {start}?
What date comes after {start}?
If today is {start}, what is the date tomorrow?
Which date follows {start}?
""",
        "date before one": """
What date is 1 day before {start}?
What date comes before {start}?
If today is {start}, what was the date yesterday?
Which date is right before {start}?
""",
        "next weekday after": """
What day comes after {start}?
Which day comes after {start}?
What is the day after {start}?
Which weekday follows {start}?
Tell me the day after {start}.
Which day is next after {start}?
Name the day that follows {start}.
""",
        "next weekday before": """
What day comes before {start}?
Which day comes before {start}?
What is the day before {start}?
Which weekday is right before {start}?
Tell me the day before {start}.
Which day is just before {start}?
""",
        "next month after": """
What month comes after {start}?
Which month comes after {start}?
What is the month after {start}?
Which month follows {start}?
Tell me the month after {start}.
Which month is next after {start}?
""",
        "next month before": """
What month comes before {start}?
Which month comes before {start}?
What is the month before {start}?
Which month is right before {start}?
Tell me the month before {start}.
Which month is just before {start}?
""",
        "today after": """
Today is {start}. What day is tomorrow?
If today is {start}, what day is tomorrow?
It is {start} today. Which day is it tomorrow?
If it is {start} today, what is tomorrow?
""",
        "today before": """
Today is {start}. What day was yesterday?
If today is {start}, what day was yesterday?
It is {start} today. Which day was it yesterday?
If it is {start} today, what was yesterday?
""",
    }
)
