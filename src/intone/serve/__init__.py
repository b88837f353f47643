"""How people and programs talk to a model: the terminal chat, OpenAI's API over HTTP, and pages for a browser"""
