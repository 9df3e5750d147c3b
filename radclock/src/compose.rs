//! Moving a clock's parameters from one counter to another: from Xen system time to a domain's TSC.
