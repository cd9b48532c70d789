"""One module per stage of the loop: read, call one plain function, report what it did."""
