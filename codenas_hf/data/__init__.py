"""Raw Python in, fixed token shards out."""
