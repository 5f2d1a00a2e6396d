"""Tables: what they count, their registry, the notes below them, and how each format shows them."""
