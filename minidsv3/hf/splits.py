"""How the released tokenizer.json splits a text into pieces, before BPE joins bytes inside them.

And the name of its token for padding.
"""

PAD = "<｜▁pad▁｜>"

# By these, one after the other: up to three digits, Chinese and Japanese, then the rest. Of the
# rest a piece is a word with one sign or space before it, a run of signs with the line ends after
# it, the white space up to a line's end, or other white space.
CJK = "一-龥぀-ゟ゠-ヿ"
RELEASED = (
    r"\p{N}{1,3}",
    f"[{CJK}]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
