package mysql

// SmallBatches makes an extractor whose batches end after so many bytes.
func SmallBatches(bytes int) *Extractor { return &Extractor{batchBytes: bytes} }
