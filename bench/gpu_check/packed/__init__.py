"""Engine directories without their random weights, which are made again on the machine that unpacks them.

recipe      which random parameters a weights file consists of, and making it from them; numpy only
matching    finds the recipe of an engine directory
archive     pack and unpack
"""
