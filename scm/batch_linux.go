package scm

// Batch is how many descriptors a sender puts on one frame on this system. One
// by one costs ten times as much as in batches of this size.
const Batch = MaxDescriptors
