"""What a submission ships and how it is checked: decoder, bundle, audit, record."""
