"""The quickstart's questions: templates filled with everyday topics, all distinct, in a fixed order."""

from __future__ import annotations

import random

REQUEST = "Please answer in one or two sentences."

GOALS = [
    "sleep better",
    "learn the guitar",
    "drink more water",
    "save money on food",
    "make new friends",
    "remember names",
    "read more books",
    "keep a plant alive",
    "stay calm in traffic",
    "cook rice well",
    "wake up earlier",
    "write a good letter",
    "speak more clearly",
    "clean a small kitchen",
    "train a puppy",
    "pack a light suitcase",
    "grow tomatoes",
    "stop biting my nails",
    "run a first mile",
    "study for a test",
    "fix a squeaky door",
    "make good coffee",
    "choose a bicycle",
    "take better photos",
    "learn a new language",
    "organise my desk",
    "say no politely",
    "prepare for an interview",
    "eat more vegetables",
    "spend less time on my phone",
    "plan a birthday party",
    "keep bread fresh",
    "fold shirts neatly",
    "start a garden",
    "iron a shirt",
    "swim faster",
    "sharpen a pencil without a sharpener",
    "help a shy child",
    "stretch after a long drive",
    "keep a diary",
]

THINGS = [
    "a volcano",
    "a rainbow",
    "gravity",
    "a glacier",
    "an eclipse",
    "the water cycle",
    "a budget",
    "a poem",
    "a compass",
    "yeast",
    "a vaccine",
    "a metaphor",
    "photosynthesis",
    "a magnet",
    "a black hole",
    "democracy",
    "an echo",
    "a tide",
    "compost",
    "a battery",
    "an orchestra",
    "a recipe",
    "an algorithm",
    "a fossil",
    "a savings account",
    "a telescope",
    "the moon",
    "a bridge",
    "friendship",
    "a habit",
    "a thunderstorm",
    "a library",
    "an earthquake",
    "a bee hive",
    "a desert",
    "jazz",
    "a password",
    "a map",
    "a greenhouse",
    "snow",
]

EVENTS = [
    "my first day at work",
    "an exam",
    "a long flight",
    "moving to a new city",
    "a doctor's visit",
    "speaking in public",
    "a job interview",
    "meeting new people",
    "a school trip",
    "my driving test",
    "a difficult talk with a friend",
    "a visit from my family",
    "a dance class",
    "the first snow of the year",
    "a camping trip",
    "a piano recital",
]

FEELINGS = ("nervous", "excited", "worried", "unsure", "curious")

OUTINGS = [
    "the beach",
    "a mountain hike",
    "a museum",
    "a picnic",
    "a wedding",
    "a music festival",
    "a weekend in the city",
    "a friend's new home",
    "the swimming pool",
    "a night under the stars",
    "a farmers' market",
    "a train journey",
]


def questions(seed: int = 0) -> list[str]:
    """Return every question once, shuffled by ``seed``; each asks for one or two sentences."""
    asked = [f"How can I {goal}?" for goal in GOALS]
    asked += [f"Give me a tip to {goal}." for goal in GOALS]
    asked += [f"Why is it good to {goal}?" for goal in GOALS]
    asked += [f"What is {thing}?" for thing in THINGS]
    asked += [f"Tell me something interesting about {thing}." for thing in THINGS]
    asked += [f"Explain {thing} to a child." for thing in THINGS]
    asked += [f"I feel {feeling} about {event}. What can I do?" for feeling in FEELINGS for event in EVENTS]
    asked += [f"What should I bring to {outing}?" for outing in OUTINGS]
    asked += [f"Why do people enjoy {outing}?" for outing in OUTINGS]
    random.Random(seed).shuffle(asked)
    return [f"{question} {REQUEST}" for question in asked]
