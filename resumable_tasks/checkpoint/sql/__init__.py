"""A database table as the checkpoint: the only folder that imports SQLAlchemy (extra ``sql``)."""
