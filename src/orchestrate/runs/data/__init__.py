"""Operations on training data files, and generation of new rows."""
