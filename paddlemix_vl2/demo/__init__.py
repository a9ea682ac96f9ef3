"""Synthetic pictures with questions and answers, enough to train a tiny model from scratch.

vocabulary  shapes, colours, places, words, fonts
lettering   words as they look
scenes      what a picture shows: scenes of shapes, cards with text, bar charts, pairs
rendering   what a picture shows -> the picture
phrases     the wording of questions and answers, in English and Chinese
questions   what a picture shows -> a question and its only right answer
samples     (task, split, index) -> a conversation
tokenizer   a small vocabulary for these conversations
scoring     right or wrong, and tables of it
evaluation  asking a model every kind of question

Pictures, questions and wording are made by rules; a sample depends on its task, split and index only.
"""
