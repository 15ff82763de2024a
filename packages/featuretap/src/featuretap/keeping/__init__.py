"""The model and the process, as they were: compared after a forward, and put back (M5).

:mod:`.untouched` is the whole of a model: its modules (:mod:`.content`), what their containers and
objects hold (:mod:`.held_content`, found by :mod:`.held`), and what lies outside of them
(:mod:`.outside`). The numbers in tensors are apart (:mod:`.saved`), since a copy of them costs memory.
Beside the model there are the switches of thread and process (:mod:`.ambient`), random numbers
(:mod:`.random_numbers`), and what a trace may leave in classes and globals (:mod:`.surroundings`).
:mod:`.undo` is for a call that fails, :mod:`.undisturbed` for a forward that nobody asked for;
:mod:`.state` and :mod:`.carry_over` say which changes the next call would read.
"""
