//! From a page and a counter reading to a time with a bound, or an error: never a wrong time.
