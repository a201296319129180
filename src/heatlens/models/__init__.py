"""Who looks: model adapters, and where their weights come from."""
