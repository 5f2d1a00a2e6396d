"""Own documents, an own encoder, no labels: does training make it better, and how would one know? (docs/adapt.md)

``held_out`` the questions that settings are chosen on; ``scoring`` what every setting finds; ``verdict`` the rules of the choice
and of the three words; ``text`` what a reader sees.
"""
