"""The colours that CLIP was trained with, for trunks and for the loader: red, green and blue, from 0 to 1.

The ground floor, as rules.py.
"""

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
