"""Questions about marked objects, of which each sample draws one. They were written for this project and are as varied as the reference's; the first of those
that ask for a long description, and of those that locate, are the ones with which its benchmarks ask (VideoRefer-Bench-D and PixelQA), which is a protocol.

Source of the lists' tasks: ``unipixel/dataset/sub_classes/{referring,region,memory}.py``.
"""

from __future__ import annotations

CAPTION_PROMPTS = (
    "What is {}? Keep it short.",
    "Name and briefly describe {}.",
    "In a few words, what do you see at {}?",
    "Tell me in one short sentence what {} is.",
    "Give {} a short caption.",
    "Write a brief caption for the marked object {}.",
    "I marked something in this picture: {}. What is it, in short?",
    "What object have I marked as {}? A few words will do.",
    "Summarise {} in one phrase.",
    "Look at {} and say briefly what it shows.",
    "What does the area {} contain? Answer in a few words.",
    "Please caption {} concisely.",
    "How would you describe {} in one line?",
    "Which thing does {} point to? Describe it shortly, please.",
    "Could you say in short what is at {}?",
    "I only need a brief description of {}.",
    "Put {} into a handful of words.",
    "Describe the thing at {} without going into detail.",
    "What can be seen at {}, put simply?",
    "Please tell me, briefly, about {} in this image.",
    "A quick description of {}, please.",
    "In this photo, what would you call {}? Be brief.",
    "State shortly what {} looks like.",
    "Help me understand {} with one compact sentence.",
    "Can you identify {} and add a word or two about it?",
)
"""Ask for a short description; ``{}`` is the marked object's token."""

DESCRIBE_PROMPTS = (
    "Please give a detailed description of the highlighted object {} in the video.",
    "Describe {} thoroughly.",
    "Tell me everything you can see about {}.",
    "Write a detailed account of {}.",
    "What does {} look like? Include as many details as you can.",
    "Go into detail about {}, please.",
    "I want a full description of {}.",
    "Look closely at {} and report what you notice.",
    "Explain what {} is, with its colours, shape and surroundings.",
    "Could you describe the marked area {} at length?",
    "Please write a careful, complete description of {}.",
    "What stands out about {}? Be exhaustive.",
    "Give an in-depth description of the object {}.",
    "Cover every visible detail of {}.",
    "How does {} appear in this picture? Describe it fully.",
    "Imagine that I cannot see the picture: describe {} for me in detail.",
    "Take your time and describe {} part by part.",
    "What can be said about {}? A long answer is welcome.",
    "Depict {} in words as precisely as possible.",
    "Please elaborate on {} and what is happening there.",
    "Provide a rich description of what lies within {}.",
    "Describe the appearance, position and condition of {}.",
    "In several sentences, what is {} like?",
    "Inspect {} and write down all that you find.",
    "Say in detail what the region {} shows.",
    "I would like a long and specific description of {}.",
    "Which details of {} are visible? List them in prose.",
    "Study the part of the image marked as {} and describe it with care.",
    "Paint a complete picture of {} in words.",
    "For the object {}, give a description that leaves nothing out.",
    "Examine {} and share a detailed description, please.",
)
"""Ask for a long description; ``{}`` is the object's number in brackets."""

LOCATE_PROMPTS = (
    "{} Please localize the relevant objects with IDs.",
    "{} First segment every object with an ID that this is about.",
    "{} Show where the numbered objects are.",
    "Where are the objects that this question numbers? {}",
    "Track each numbered object that the following mentions: {}",
    "Before answering, mark the objects with IDs in this query: {}",
    "'{}' - give one mask for each ID in this text.",
)
"""Ask for the masks of the numbered objects of a question, ``{}``. Inference asks with the first one (``prompts.locating_turn``)."""
