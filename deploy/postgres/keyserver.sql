-- Coordinator and key server never share a database: the one must not be able to change what the other remembers.
CREATE DATABASE keyserver;
