"""What stands for the values of a forward while it is traced, and what it answers.

:mod:`.proxies` stand for what depends on the inputs (:mod:`.placeholders`). Buffers and constants stay
real tensors (:mod:`.real_tensors`), of which some may be others in the next call (:mod:`.volatile`). The
rest is what code may ask of a stand-in: its kind, whether it is another value, its size, its text.
"""
