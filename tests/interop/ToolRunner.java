import java.io.BufferedReader;
import java.io.ByteArrayOutputStream;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.lang.reflect.InvocationTargetException;
import java.nio.charset.StandardCharsets;
import org.apache.kafka.common.utils.Exit;

/**
 * Runs Kafka's own tools one after the other in one JVM, since the start of a JVM costs more than most of them. Reads one
 * command a line, its words (the class first) separated by tabs; answers each with a line {@code STATUS BYTES} and as many
 * bytes, which the tool has printed. Run by test_group_tools.py.
 */
public class ToolRunner {
    /** In place of the process's end; some tools catch it, so what counts is the first. */
    static class Ended extends Error {}

    static Integer ended;

    static void end(int status, String message) {
        ended = ended == null ? Integer.valueOf(status) : ended;
        throw new Ended();
    }

    public static void main(String[] arguments) throws Exception {
        Exit.setExitProcedure(ToolRunner::end);
        Exit.setHaltProcedure(ToolRunner::end);
        PrintStream answers = System.out;
        BufferedReader commands = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = commands.readLine(); line != null; line = commands.readLine()) {
            ByteArrayOutputStream said = new ByteArrayOutputStream();
            PrintStream out = new PrintStream(said, true, StandardCharsets.UTF_8);
            System.setOut(out);
            System.setErr(out);
            int status = run(line.split("\t"), out);
            out.flush();
            answers.println(status + " " + said.size());
            said.writeTo(answers);
            answers.flush();
        }
    }

    static int run(String[] words, PrintStream out) throws Exception {
        String[] rest = java.util.Arrays.copyOfRange(words, 1, words.length);
        ended = null;
        try {
            Class.forName(words[0]).getMethod("main", String[].class).invoke(null, (Object) rest);
        } catch (InvocationTargetException thrown) {
            if (ended == null) {
                thrown.getCause().printStackTrace(out);
                return 1;
            }
        }
        return ended == null ? 0 : ended;
    }
}
