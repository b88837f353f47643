"""Small talk: what people say, what the model says back, and the topics it can be about."""

from intone.data.starter.item import listed, numbered

SMALLTALK_ANSWERS = {
    "greeting": "Hello! How can I help you?",
    "how are you": "I am fine, thank you. How are you?",
    "thanks": "You are welcome!",
    "goodbye": "Goodbye! Have a nice day.",
    "introduction": "Nice to meet you, {x}! How can I help you?",
    # one answer for good and bad moods: whether an unseen mood is good or bad cannot be known from its letters
    "mood": "Thank you for telling me that you feel {x}. Why do you feel {x}?",
    "like": "I think {x} sounds fun. What do you like most about {x}?",
    "dislike": "I see, {x} is not for everyone. What do you like more than {x}?",
    "food": "Oh, {x} sounds tasty. Did you make the {x} yourself?",
    "weather": "So it is {x}. Do you like it when it is {x}?",
    "plan": "A trip to the {x} sounds nice. What will you do at the {x}?",
    "pet": "Your {x} sounds lovely. What is the name of your {x}?",
}

TOPICS = {
    "mood": listed(
        """
        happy glad excited proud calm great cheerful lucky wonderful relaxed fine awake brave merry hopeful thankful
        strong joyful good fantastic sad tired angry lonely worried ill sleepy bored nervous afraid upset cold
        hungry lost sick weak scared unhappy confused stressed awful terrible grumpy
        """
    ),
    "like": listed(
        """
        painting swimming reading cooking dancing singing fishing hiking running drawing gardening baking skating
        sailing knitting writing camping climbing cycling football tennis chess music travelling walking surfing
        sewing photography riding diving skiing juggling jogging acting shopping karate basketball pottery poetry
        history science yoga rowing hockey volleyball puzzles
        """
    ),
    "food": listed(
        """
        soup bread pizza pasta salad rice pancakes cake cheese fish porridge curry stew cookies apples eggs noodles
        toast waffles pudding pie sandwiches chicken beans potatoes jam muffins popcorn yogurt sushi lasagna tacos
        """
    ),
    "weather": listed(
        """
        sunny rainy cloudy windy snowy cold hot foggy stormy warm cool wet dry icy freezing misty dark bright mild
        humid
        """
    ),
    "plan": listed(
        """
        beach zoo park museum lake market cinema mountains forest library castle theatre river farm island circus
        city garden pool village restaurant stadium harbour playground desert fair concert aquarium bakery bookshop
        """
    ),
    "pet": listed(
        """
        dog cat rabbit hamster parrot horse pony goldfish turtle mouse snake bird duck goat puppy kitten canary
        lizard frog spider hen pig lamb donkey rat
        """
    ),
}
TOPICS["dislike"] = TOPICS["like"]

SMALLTALK = numbered(
    {
        "greeting": """
Hello!
Hi!
Hello there.
Good morning!
Hey!
Hi there!
Good evening!
hello
Hey there!
Good afternoon!
hi
Hello Intone!
Hi Intone!
Good day!
""",
        "how are you": """
How are you?
How are you today?
How do you feel today?
How is it going?
Are you well?
How are you doing?
Hello, how are you?
Hi, how are you?
how are you
How is your day?
""",
        "thanks": """
Thank you!
Thanks!
Thank you very much.
Thanks a lot!
Many thanks.
Thanks for your help.
Thank you for your help.
That was helpful, thank you.
thanks
Great, thanks!
""",
        "goodbye": """
Goodbye!
Bye!
See you later.
Good night!
I have to go now.
Bye bye!
I must go. Goodbye!
See you tomorrow.
bye
Until next time!
""",
        "introduction": """
Hi, I am {x}.
Hello, my name is {x}.
My name is {x}.
I am {x}.
Hello! I am {x}.
Hi, my name is {x}.
You can call me {x}.
People call me {x}.
Hey, this is {x}.
""",
        "mood": """
I feel {x} today.
I am {x} today.
I am so {x}!
I feel {x}.
Today I feel very {x}.
I feel so {x} today.
I am feeling {x}.
I am very {x} now.
I am a bit {x}.
I feel a little {x}.
This morning I feel {x}.
""",
        "like": """
I love {x}.
I like {x}.
I like {x} very much.
My hobby is {x}.
I enjoy {x}.
I really like {x}.
I am a fan of {x}.
In my free time I enjoy {x}.
My favourite hobby is {x}.
""",
        "dislike": """
I do not like {x}.
I hate {x}.
I don't like {x}.
I do not enjoy {x}.
I never liked {x}.
I really do not like {x}.
I think {x} is boring.
""",
        "food": """
I had {x} for lunch.
I ate {x} today.
I am eating {x}.
Today I had {x}.
I had {x} for dinner.
I ate {x} for lunch.
We had {x} for dinner.
I just had some {x}.
""",
        "weather": """
It is {x} today.
The weather is {x}.
It is very {x} outside.
Today it is {x}.
It is so {x} here.
The weather is {x} today.
It is {x} outside.
""",
        "plan": """
I am going to the {x} tomorrow.
This weekend I will visit the {x}.
Tomorrow we go to the {x}.
We want to go to the {x}.
I will go to the {x} today.
We are going to the {x} tomorrow.
I plan to visit the {x}.
""",
        "pet": """
I have a {x}.
I have a pet {x}.
My pet is a {x}.
We have a {x} at home.
I got a {x}.
I have a {x} at home.
There is a {x} in my house.
""",
    }
)
