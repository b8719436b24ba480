package nodeagent

const alivePath = "/alive"
const programName = "program.sha256"
