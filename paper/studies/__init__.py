"""One file per figure, table or question. Each defines STUDY; `paper.catalogue` lists their names."""
