// Starts azurite, says where it listens, and stays until its input ends.
const { spawn } = require("child_process");
const main = require.resolve("azurite/dist/src/blob/main.js");
const words = "--blobHost 127.0.0.1 --blobPort 0 --inMemoryPersistence --disableTelemetry --skipApiVersionCheck";
const server = spawn(process.execPath, [main, ...words.split(" ")]);
server.stdout.on("data", (text) => {
    const found = /successfully listens on http:\/\/(.+)/.exec(text);
    if (found) console.log(found[1]);
});
process.stdin.on("end", () => { server.kill("SIGKILL"); process.exit(); }).resume();
