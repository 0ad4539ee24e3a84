"""The same photographs through both lenses: how large the domain gap is, and what closes it."""
