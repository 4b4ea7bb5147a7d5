"""Random text that is difficult to tokenise, made of strings that some rule treats differently."""

from __future__ import annotations

from hypothesis import strategies as st

from gpt1cli.text import normalise

WORDS = "the Wed wed. THE A A. AA. John's s d Tis em 'em wed 'wed. Don't. 'a' x.y U.S. e.g. U.S.A. v.v 0.0 ſ İ ΑΣ ǅ"
NUMBERS = "10am 10a.m. 7p.m.. 5km 3.50 $5 5% 12/03 1,000 1-2 °c. 2² ½"
QUOTES = "' '' ''' \" \"\" “ ” ‘ ’ „ « » ´ `"
MARKS = ". .. ... .... … - -- — – ― , ,, ; : ! ?! ( ) (( [ ] { } | _ __ ~ + * / \\ = # @ $ % ^"
FACES = "o.O :) :-( :'( :3 :D ^_^ ._. -_- <3 >.< ><(((*> (*_*) ಠ_ಠ ¯\\(ツ)/¯ 8-D =D"
WEB = "http://a.b/c?d=e#f x@y.org www.a.co.uk < > <b> </p> & && &amp; &lt; &AMP; &#39; &#x41; &bogus; &c."
OTHER = "é e\u0301 \u0301 ñ £ £5 é“ Ã© â€œ Â Ã 我 テスト 한 😀 👩\u200d👧 ﬁ Ａ \u200b \u00ad \ufeff \ud800 \ud83d\ude00"
CONTROL = ["\x00", "\x07", "\x1b[1m", "\x7f", "\x85", "\x91", "&am\x00p;"]
BLANKS = [chr(code) for code in range(0x3001) if chr(code).isspace()]
LINES = ["\n", "\n\n", " \n ", "\r\n", "\r", "\u2028", "\u2029", "\x0b", "\x0c"]

VISIBLE = " ".join((WORDS, NUMBERS, QUOTES, MARKS, FACES, WEB, OTHER)).split(" ")
STRINGS = [*VISIBLE, *CONTROL, *BLANKS, *LINES, *" " * 40]

strings = st.sampled_from(STRINGS)
exceptions = st.deferred(lambda: st.sampled_from(sorted(normalise._english().rules)))
affixes = st.sampled_from(["", "'", "''", ".", "'.", ".'", ":", "'s", "’", '"', ",", "(", ")", "_", " .", " '"])

texts = st.one_of(
    st.lists(strings, max_size=30).map("".join),
    st.lists(st.tuples(affixes, exceptions, affixes).map("".join), max_size=12).map(" ".join),
    st.lists(st.one_of(exceptions, strings), max_size=20).map(" ".join),
)
"""A strategy for texts: concatenated strings, and exceptions of spaCy between quotes and marks, whose words may
depend on their neighbours."""
