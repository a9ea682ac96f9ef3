"""Many questions from files: answered in batches, resumed after an interruption, scored.

records      a TSV, JSONL or JSON file -> one record after the other
requests     a question, or a line of a request file -> a conversation
questions    a record of a benchmark -> a question with its right answers
tasks        benchmarks as data: prompt, metric, the paper's scores
metrics      an answer and the right ones -> a score
vqa_answers  answers of VQA benchmarks, written one way
runs         what is missing in a journal -> answers
journal      results as they come -> a file in order
evaluator    questions -> answers -> the score of a benchmark

The answering itself is :mod:`paddlemix_vl2.generation.batched`.
"""
