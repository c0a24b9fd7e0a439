mod tables;
mod world;
