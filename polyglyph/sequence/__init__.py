"""Documents, the vocabulary and the grammar: how codes become ids and ids codes. numpy only."""
