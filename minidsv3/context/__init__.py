"""How the window of a trained model grows: two short phases with YaRN, and the proof (report, 4.3).

    extend.py      a finished run in, the same model with a window 32 times as long out
    needle.py      whether a note anywhere in a long text is found, as a map
    position.py    bits per byte against the position in the window
"""
