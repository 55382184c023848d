"""How the lens is shown: a table in a terminal, a page, a picture, or numbers for a program.

``picture.py`` decides what is drawn where and in which shade, once for all of them; the others only
draw. What the numbers mean is said in ``gpt_verify.lens.statistics``.
"""
