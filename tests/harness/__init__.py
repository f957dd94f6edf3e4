"""What the black-box suites share: brokers under test, installed clients, the wire by hand."""
