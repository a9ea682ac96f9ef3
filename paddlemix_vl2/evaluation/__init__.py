"""Many questions from files: answered in batches, resumed after an interruption, scored.

requests     a question, or a line of a request file -> a conversation
questions    a record of a benchmark -> a question with its right answers
tasks        benchmarks as data: prompt, metric, the paper's scores
metrics      an answer and the right ones -> a score
vqa_answers  answers of VQA benchmarks, written one way
answering    what is missing in a journal -> answers
journal      results as they come -> a file in order
evaluator    questions -> answers -> the score of a benchmark

Files are read by :mod:`paddlemix_vl2.data.records`; what answers is :mod:`paddlemix_vl2.generation.batched`.
"""
