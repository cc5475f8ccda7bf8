"""The online side: the public recommenders, their live answers, and the HTTP service over them."""
