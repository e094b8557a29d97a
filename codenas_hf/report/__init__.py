"""What people look at: tables, drawings of the tables, one page per study."""
