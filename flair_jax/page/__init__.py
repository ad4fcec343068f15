"""The page of a run: what runs say (`collect`), its figures, its gallery, its templates."""
