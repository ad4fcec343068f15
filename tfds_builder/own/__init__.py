"""Users' own images and masks, cut into patches and stored as FLAIR's are."""
