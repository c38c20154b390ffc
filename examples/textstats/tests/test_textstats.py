from __future__ import annotations

import unittest

from textstats import longest_line, most_common, words

TEXT = "The cat saw the dog.\nThe dog ran, and the cat didn't.\n"


class TextStats(unittest.TestCase):
    def test_words_are_lower_case_and_keep_apostrophes(self) -> None:
        self.assertEqual(words("The cat didn't"), ["the", "cat", "didn't"])

    def test_most_common_starts_with_the_most_frequent(self) -> None:
        self.assertEqual(most_common(TEXT, 3), [("the", 4), ("cat", 2), ("dog", 2)])

    def test_longest_line(self) -> None:
        self.assertEqual(longest_line(TEXT), "The dog ran, and the cat didn't.")
        self.assertEqual(longest_line(""), "")


if __name__ == "__main__":
    unittest.main()
