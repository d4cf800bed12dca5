package queue

// Returns counts the recorded returns that were not looked up yet.
func (c *Consumer) Returns() int {
	c.returned.mu.Lock()
	defer c.returned.mu.Unlock()
	return len(c.returned.newer) + len(c.returned.older)
}
