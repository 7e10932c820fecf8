static inline int verb_demo(const Options *o) { (void)o; return 0; }
