"""Known porting mistakes: injected to measure the suite, tried to explain a failure.

fault.py      what a fault is
oracle.py     the oracle with some operations replaced
model.py      a correct port in torch in which every step can be replaced
catalogue.py  every fault; one file for each family
"""
