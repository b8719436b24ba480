package testbed

// Engine is Docker and Image for a program that is not a test: the address of an
// engine that answers and the name of BaseImage in it.
func Engine() (host, image string, err error) {
	if host, err = dockerHost(); err != nil {
		return "", "", err
	}
	return host, BaseImage, importImages()
}
